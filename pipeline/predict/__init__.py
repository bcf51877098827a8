"""Using it: a video, a webcam, images or 2D files in; the 3D motion of everybody in it out."""
