// Classifies a picture by a model of images of bytes with their channels last:
//
//   java -cp onnxruntime.jar Classify.java MODEL.onnx PICTURE.ppm LIBRARY [--bits]
//
// MODEL is what bnn-deploy convert --input uint8 --layout nhwc writes, PICTURE a binary PGM or PPM file of its size,
// without comments, and LIBRARY what bnn-deploy library-path prints. Prints the five likeliest classes, and the median
// time of 100 runs. --bits prints all outputs as the bits of their floats instead.

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Comparator;
import java.util.Map;
import java.util.stream.IntStream;

public final class Classify {
  private record Picture(long height, long width, long channels, byte[] bytes) {}

  private static Picture read(Path path) throws IOException {
    byte[] file = Files.readAllBytes(path);
    String[] header = new String(file, StandardCharsets.ISO_8859_1).split("\\s", 5);
    if (header.length < 5 || !header[0].matches("P[56]") || !header[3].equals("255")) {
      throw new IOException(path + ": not a binary PGM or PPM file of 8 bits without comments: convert it to one");
    }
    int channels = header[0].equals("P6") ? 3 : 1;
    int width = Integer.parseInt(header[1]), height = Integer.parseInt(header[2]);
    int start = file.length - header[4].length(), size = width * height * channels;
    if (header[4].length() < size) {
      throw new IOException(path + ": ends before its last pixel");
    }
    return new Picture(height, width, channels, Arrays.copyOfRange(file, start, start + size));
  }

  private static float[] run(OrtEnvironment environment, OrtSession session, Picture picture) throws OrtException {
    ByteBuffer bytes = ByteBuffer.allocateDirect(picture.bytes.length).put(picture.bytes).rewind();
    long[] shape = {1, picture.height, picture.width, picture.channels};
    String input = session.getInputNames().iterator().next();
    try (OnnxTensor tensor = OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.UINT8);
        OrtSession.Result result = session.run(Map.of(input, tensor))) {
      return ((float[][]) result.get(0).getValue())[0];
    }
  }

  private static void print(float[] scores) {
    double total = IntStream.range(0, scores.length).mapToDouble(i -> Math.exp(scores[i])).sum();
    IntStream.range(0, scores.length)
        .boxed()
        .sorted(Comparator.comparingDouble(i -> -scores[i]))
        .limit(5)
        .forEach(
            i -> {
              double share = 100 * Math.exp(scores[i]) / total;
              System.out.printf("class %-4d score %9.4f   %5.1f %%%n", i, scores[i], share);
            });
  }

  private static void classify(String model, Path picture, String library, boolean bits)
      throws IOException, OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(1);
      options.registerCustomOpLibrary(library);
      try (OrtSession session = environment.createSession(model, options)) {
        Picture image = read(picture);
        float[] scores = run(environment, session, image);
        if (bits) {
          for (float score : scores) {
            System.out.printf("%08x%n", Float.floatToRawIntBits(score));
          }
          return;
        }
        print(scores);
        double[] times = new double[100];
        for (int i = 0; i < times.length; i++) {
          long start = System.nanoTime();
          run(environment, session, image);
          times[i] = (System.nanoTime() - start) / 1e6;
        }
        Arrays.sort(times);
        System.out.printf("%.3f ms, the median of %d runs%n", times[times.length / 2], times.length);
      }
    }
  }

  public static void main(String[] arguments) {
    boolean bits = arguments.length == 4 && arguments[3].equals("--bits");
    if (arguments.length != 3 && !bits) {
      System.err.println("usage: java -cp onnxruntime.jar Classify.java MODEL.onnx PICTURE.ppm LIBRARY [--bits]");
      System.exit(2);
    }
    try {
      classify(arguments[0], Path.of(arguments[1]), arguments[2], bits);
    } catch (IOException | OrtException error) {
      System.err.println("error: " + error.getMessage());
      System.exit(1);
    }
  }
}
