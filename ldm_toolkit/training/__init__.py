"""Training from scratch and fine-tuning through Accelerate: one loop and small methods."""
