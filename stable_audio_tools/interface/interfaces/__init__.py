"""Published import path of the pages of the app."""
