"""Images, streams of phases, loaders, augmentation."""
