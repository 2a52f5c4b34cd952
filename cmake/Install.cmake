# cmake --install: libkrait, the public headers, the program, and what find_package(Krait) and
# pkg-config need. The library holds the objects of every layer below cli.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(objects GLOBAL PROPERTY KRAIT_LIBRARY_OBJECTS)
add_library(libkrait SHARED ${objects})
set_target_properties(libkrait PROPERTIES OUTPUT_NAME krait EXPORT_NAME krait
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_compile_features(libkrait INTERFACE cxx_std_20)
# Public headers show fmt and OpenMP; what else the layers link is used inside only.
get_property(links GLOBAL PROPERTY KRAIT_LIBRARY_LINKS)
target_link_libraries(libkrait PUBLIC fmt::fmt OpenMP::OpenMP_CXX PRIVATE ${links})
get_property(layers GLOBAL PROPERTY KRAIT_LAYERS)
list(REMOVE_ITEM layers cli)
set(gates ${layers})
list(TRANSFORM gates PREPEND ${CMAKE_BINARY_DIR}/layers/)
target_include_directories(libkrait INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include;${gates}>")
add_library(Krait::krait ALIAS libkrait)

install(TARGETS libkrait EXPORT KraitTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS krait RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/krait DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
foreach(layer ${layers})
  install(DIRECTORY src/${layer} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/krait
    FILES_MATCHING PATTERN "*.h" PATTERN "*fixture.h" EXCLUDE PATTERN "*_bench.h" EXCLUDE)
endforeach()

configure_package_config_file(cmake/KraitConfig.cmake.in ${CMAKE_BINARY_DIR}/KraitConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Krait)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/KraitConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/KraitConfig.cmake ${CMAKE_BINARY_DIR}/KraitConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Krait)
install(EXPORT KraitTargets NAMESPACE Krait:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Krait)

configure_file(cmake/krait.pc.in ${CMAKE_BINARY_DIR}/krait.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/krait.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
