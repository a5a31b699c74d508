"""Models and tokenizers: folders in, Transformers objects out."""
