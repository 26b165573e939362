"""Draw translations of held-out painted birds beside the true pictures.

python docs/draw_translations.py MODEL PICTURE
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mirrorgan_fast import CycleGAN, Translator
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds

BIRDS = 8


def main() -> None:
    """Write the sheet: a row each of pictures, translations and true ones, for both directions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    model = CycleGAN.from_pretrained(options.model)
    x, y = model.config.x, model.config.y
    birds = PaintedBirds("test", BIRDS, model.config.image_size)
    rows = []
    for source, wanted in ((x, y), (y, x)):
        given, true = (
            [birds.painting(index, background).image for index in range(BIRDS)]
            for background in (source, wanted)
        )
        rows += [given, Translator(model, wanted).translate(given), true]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(options.picture, quality=90)


if __name__ == "__main__":
    main()
