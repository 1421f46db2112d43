"""Student families: real Hugging Face models of any width and depth, and their view on teacher states."""
