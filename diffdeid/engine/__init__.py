"""The engine: faces -> outcomes. Photos, videos, the app, attacks and benchmarks all run the stages through it.

faces       faces of any pictures, in batches: the only loops over attempts
pictures    pictures and their faces
people      who is who in a video, and who stands in for them
frames      the frames of a video
session     a video, processed frame by frame
consent     who is left as they are, recognised by photos
watch       which people of a video are those
reports     what happened to faces and people

Only the engine decides which faces share a batch. An error covers the face that it is about: a batch that fails is run again face
by face, and a face that fails alone is covered.
"""
