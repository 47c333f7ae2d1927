"""The engine: faces -> outcomes. Photos, videos, the app, attacks and benchmarks all run the stages through it.

faces       faces of any pictures, in batches: the only loops over attempts
pictures    pictures and their faces
people      who is who in a video, and who stands in for them
frames      the frames of a video
session     a video on its way, frame by frame
consent     who stays as they are, told by photos
watch       who of a video does
reports     what happened to faces and people

It alone decides which faces share a batch. What goes wrong with a face covers that face: a batch that fails is run face by face,
and a face that fails alone is hidden.
"""
