"""The HTTP front: OpenAI-style routes over an engine seen through `jaxsgl.interface` alone."""
