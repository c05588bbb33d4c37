"""What people run: texts in, valence, arousal and emotions out; and texts to vectors for scikit-learn.

Imports every room but `commands`. A user's first call is [`AffectPipeline.from_pretrained`].
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(__name__, {"pipeline": ["AffectPipeline"], "vectorizer": ["CarlVectorizer"]})
