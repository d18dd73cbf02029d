"""Pictures that the demo model's own canvas did not draw: web pages, plots, vector graphics, Pillow's plain font.

A picture of any of them is a `pictures.Sample`, so that it is learnt from in the same way.
"""
