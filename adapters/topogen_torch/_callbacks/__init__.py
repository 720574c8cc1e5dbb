"""Controllers inside the training loops of others: Lightning's and Hugging Face's."""
