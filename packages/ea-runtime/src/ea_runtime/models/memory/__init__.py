"""The one predictor of memory and arithmetic: networks walked through by their configs. Imports no torch."""
