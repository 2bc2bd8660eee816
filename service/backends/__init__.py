"""Ways to run the models: each module or package here implements the `Backend` port."""
