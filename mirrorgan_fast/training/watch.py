"""What a person should know of a failing run: one sentence with what to change, once."""

from collections.abc import Mapping

_IN_A_ROW = 10
_FIRST_STEP = 1_000


class Watch:
    """Reads the points of a run's curves, and says what goes wrong.

    It looks for discriminators that win, for a generator whose images of one caption are all alike,
    and for a DAMSM that does not learn. Each is said once.
    """

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}
        self._most_diverse = 0.0
        self._said: set[str] = set()

    def look(self, steps: int, figures: Mapping[str, float], batch_size: int) -> list[str]:
        """Return the warnings that a point gives cause to.

        Args:
            steps: taken so far.
            figures: of the point.
            batch_size: the number of images that are compared with each other.
        """
        found = []
        for name in sorted(figures):
            stage = name.removesuffix("(real)")
            if name == stage or stage.replace("D", "G") not in figures:  # D_i trains alone
                continue
            real, generated = figures[name], figures.get(f"{stage}(generated)", 0.5)
            if self._lasts(f"{stage} wins", real > 0.98 and generated < 0.02):
                found.append(
                    f"{stage} tells every real image from every generated one, so the generator "
                    f"learns little from it: raise gan.learning_rate against "
                    f"gan.discriminator_learning_rate, or set gan.r1_weight"
                )
        if "diversity" in figures:
            self._most_diverse = max(self._most_diverse, figures["diversity"])
            alike = figures["diversity"] < 1 and self._most_diverse > 4
            if self._once("alike", alike):
                found.append(
                    f"the images of one caption are all alike ({figures['diversity']:.1f} gray "
                    f"levels apart, {self._most_diverse:.1f} before): the generator has collapsed; "
                    f"begin again with a lower gan.learning_rate, or with gan.r1_weight"
                )
        if "retrieval" in figures and steps >= _FIRST_STEP:
            chance = 1 / batch_size
            if self._lasts("DAMSM", figures["retrieval"] < 1.5 * chance):
                found.append(
                    f"DAMSM finds the caption of an image no better than by chance "
                    f"({figures['retrieval']:.1%}, {chance:.1%} by chance): lower "
                    f"stem.learning_rate, raise stem.gradient_clip, or look whether the captions "
                    f"belong to the pictures"
                )
        return found

    def _lasts(self, name: str, bad: bool) -> bool:
        """Return whether something has been bad for many points in a row, for the first time."""
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if bad else 0
        return self._once(name, self._in_a_row[name] >= _IN_A_ROW)

    def _once(self, name: str, bad: bool) -> bool:
        if not bad or name in self._said:
            return False
        self._said.add(name)
        return True
