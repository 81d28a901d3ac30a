"""The generation engines, all behind `base.Engine`."""
