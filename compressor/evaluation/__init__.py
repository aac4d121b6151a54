"""Questions about a model beyond its perplexity: continuations and lm-eval's tasks."""
