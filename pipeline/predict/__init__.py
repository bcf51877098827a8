"""Using it: networks that find people and their joints in images, and what makes motion of them."""
