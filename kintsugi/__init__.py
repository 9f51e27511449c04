"""Kintsugi: restore image datasets with pretrained diffusion and flow models, fast, and measure it."""
