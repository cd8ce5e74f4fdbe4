"""The HTTP side of `ea serve`: the OpenAI videos API, the page's own API, events, metrics, and what guards them."""
