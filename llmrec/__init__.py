"""Personalised top-K tables from interaction logs with a fine-tuned language model."""
