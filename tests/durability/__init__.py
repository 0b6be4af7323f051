"""Accidents: kills, signals, loss of power, full and failing disks, changed parents, two processes, flipped bits."""
