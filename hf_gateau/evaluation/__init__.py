"""What a model can do after training: LongBench, RULER, needles, and what judges say of its answers."""
