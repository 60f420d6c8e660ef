"""The 1-D attention U-Nets: `adp_1d`, `adp_cfg_1d` and `adp_uncond_1d`."""
