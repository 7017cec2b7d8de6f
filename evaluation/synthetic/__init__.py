"""What samples are made of locally: essays, random words, RULER's tasks, and the size that fits a length."""
