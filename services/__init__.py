"""Processes around the loop: command line, supervisor of one machine, control plane, report."""
