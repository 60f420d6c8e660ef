"""Model and dataset configs that come with the package."""
