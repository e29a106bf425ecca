"""Passes that replace float layers of signs and levels by the operators of the domain `bnn_deploy`."""
