"""From text to a data folder, and from one data folder to another."""
