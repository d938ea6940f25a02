"""Floor 2, the translation: entries, tables that lie in frames, the walk, the TLB and its flushing (chapter 3)."""
