"""Who may ask for what: API keys and their scopes, host names and origins."""
