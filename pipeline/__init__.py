"""Heatlift: pictures to heatmaps to cached 2D joints to 3D motion, every stage trained.

    images ── heatmap/ ──> 2D heatmaps ──> detections.py ──> cached 2D clips ── lift/ ──> 3D clips
    motion capture 3D ── pretrain/ ──> random camera ──> masked, noisy 2D ──> 3D: weights for lift/

Importing this package loads nothing heavy; `from pipeline.lift import MixSTE` loads what it needs.
"""
