"""A record of what was found out about a model, as JSON and as one HTML page."""
