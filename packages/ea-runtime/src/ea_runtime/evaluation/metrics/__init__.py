"""The bundled metrics. Each module says in what unit, and what moves it."""
