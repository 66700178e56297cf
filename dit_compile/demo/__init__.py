"""The bundled demonstration model: a small, really trained diffusion transformer."""
