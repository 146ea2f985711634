"""Text as tokens of the one vocabulary: templates, tokenizers, packed examples, and roles and
rationales from an outside annotator."""
