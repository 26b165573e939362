"""What is timed, and what is counted."""
