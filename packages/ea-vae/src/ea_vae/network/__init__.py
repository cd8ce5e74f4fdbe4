"""The network: it imports torch, einops and diffusers' mixins only."""
