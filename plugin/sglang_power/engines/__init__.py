"""What continues token sequences: implementations of `algorithms.engine.Engine` outside of a server."""
