"""Replicas in processes of their own, and the front's side of them."""
