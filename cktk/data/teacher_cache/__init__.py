"""What a teacher said, recorded on disk."""
