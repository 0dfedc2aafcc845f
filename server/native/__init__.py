"""SGLang's own routes: /generate and those around it."""
