"""Models as other programs read them, proven in the program itself."""
