"""Public repositories of pictures, written as image folders with captions."""
