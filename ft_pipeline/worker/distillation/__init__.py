"""Students, teacher logits, and the losses of a student that learns from them.

It imports inference/, models/, losses.py and data/.
"""
