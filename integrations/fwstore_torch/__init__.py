"""fwstore for torch: `Saver` for training loops, and the storage of torch.distributed.checkpoint."""
