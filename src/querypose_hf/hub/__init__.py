"""Publishing on the Hub: upload, model card, endpoint handler, Space."""
