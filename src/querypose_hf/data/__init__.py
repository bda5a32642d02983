"""Sources of annotated pictures, augmentation and collation."""
