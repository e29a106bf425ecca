// Classifies a picture by a model of images of bytes with their channels last:
//
//   dotnet run MODEL.onnx PICTURE.ppm LIBRARY [--bits]
//
// MODEL is what bnn-deploy convert --input uint8 --layout nhwc writes, PICTURE a binary PGM or PPM file of its size,
// without comments, and LIBRARY what bnn-deploy library-path prints. Prints the five likeliest classes, and the median
// time of 100 runs. --bits prints all outputs as the bits of their floats instead.

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Text;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

internal static class Classify
{
    // The bytes [1][height][width][channels] of a picture.
    private static DenseTensor<byte> Read(string path)
    {
        byte[] file = File.ReadAllBytes(path);
        string text = Encoding.GetEncoding("ISO-8859-1").GetString(file);
        string[] header = text.Split(new[] { ' ', '\n', '\r', '\t' }, 5);
        if (header.Length < 5 || (header[0] != "P5" && header[0] != "P6") || header[3] != "255")
        {
            throw new IOException(path + ": not a binary PGM or PPM file of 8 bits without comments");
        }
        int channels = header[0] == "P6" ? 3 : 1, width = int.Parse(header[1]), height = int.Parse(header[2]);
        int start = file.Length - header[4].Length, size = width * height * channels;
        if (header[4].Length < size)
        {
            throw new IOException(path + ": ends before its last pixel");
        }
        return new DenseTensor<byte>(file.Skip(start).Take(size).ToArray(), new[] { 1, height, width, channels });
    }

    private static float[] Run(InferenceSession session, DenseTensor<byte> picture)
    {
        string input = session.InputMetadata.Keys.Single();
        using (var results = session.Run(new[] { NamedOnnxValue.CreateFromTensor(input, picture) }))
        {
            return results.First().AsEnumerable<float>().ToArray();
        }
    }

    private static void Print(float[] scores)
    {
        double total = scores.Sum(score => Math.Exp(score));
        foreach (int i in Enumerable.Range(0, scores.Length).OrderByDescending(i => scores[i]).Take(5))
        {
            double share = 100 * Math.Exp(scores[i]) / total;
            Console.WriteLine("class {0,-4} score {1,9:F4}   {2,5:F1} %", i, scores[i], share);
        }
    }

    private static int Main(string[] arguments)
    {
        bool bits = arguments.Length == 4 && arguments[3] == "--bits";
        if (arguments.Length != 3 && !bits)
        {
            Console.Error.WriteLine("usage: dotnet run MODEL.onnx PICTURE.ppm LIBRARY [--bits]");
            return 2;
        }
        try
        {
            var options = new SessionOptions { IntraOpNumThreads = 1 };
            options.RegisterCustomOpLibrary(arguments[2]);
            using (var session = new InferenceSession(arguments[0], options))
            {
                DenseTensor<byte> picture = Read(arguments[1]);
                float[] scores = Run(session, picture);
                if (bits)
                {
                    foreach (float score in scores)
                    {
                        Console.WriteLine("{0:x8}", BitConverter.ToUInt32(BitConverter.GetBytes(score), 0));
                    }
                    return 0;
                }
                Print(scores);
                var times = new List<double>();
                for (int i = 0; i < 100; i++)
                {
                    var watch = Stopwatch.StartNew();
                    Run(session, picture);
                    times.Add(watch.Elapsed.TotalMilliseconds);
                }
                times.Sort();
                Console.WriteLine("{0:F3} ms, the median of {1} runs", times[times.Count / 2], times.Count);
            }
            return 0;
        }
        catch (Exception error) when (error is OnnxRuntimeException || error is IOException)
        {
            Console.Error.WriteLine("error: " + error.Message);
            return 1;
        }
    }
}
