"""Distillation of internal representations, stage by stage."""
