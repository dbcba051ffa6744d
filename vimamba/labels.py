"""What the class indices of a mask mean to losses, scores, data sets and pictures alike."""

# pixels of this class count neither in a loss nor in a score
IGNORE = 255
