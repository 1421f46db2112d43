"""What a student starts from."""
